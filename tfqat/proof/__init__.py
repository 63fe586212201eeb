"""Proves that an exported graph computes what its model computes, code for code, and says why where it does not."""
