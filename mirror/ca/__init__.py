"""The certificate authority of proxy mode: it signs certificates for the registries' hosts.

Contains keys, certificates and their files; independent of HTTP and of the registries.
"""
