"""Pictures of the status page, made from a mirror that really runs: ``make screenshots``.

The page uses the fonts of the system: on Debian it looks best with ``fonts-inter``.
"""
