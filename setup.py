"""The recipes stand at the top level, to be read and run there; installed, they are `mmssl.recipes`."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["mmssl", "mmssl.*"]), *find_packages("kernels"), "mmssl.recipes"],
    package_dir={"mmssl_kernels": "kernels/mmssl_kernels", "mmssl.recipes": "recipes"},
)
