"""The C part is optional: where it cannot be compiled, the twin in Python does its work."""

from setuptools import setup

setup(cffi_modules=["ffi_build.py:ffi"])
