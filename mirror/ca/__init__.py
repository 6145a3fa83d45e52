"""The mirror as a certificate authority for the registries it stands for in proxy mode.

Knows keys, certificates and their files; knows no HTTP and no registry.
"""
