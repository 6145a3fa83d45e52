"""Screenshots of the status page of a running mirror: ``make screenshots``.

The page uses the fonts of the system: on Debian it looks best with ``fonts-inter``.
"""
