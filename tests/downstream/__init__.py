"""Scripts of users who have what mmssl exported, and not mmssl: one a library."""
