"""lensaudit: an audit of strong-gravitational-lens finders on DESI Legacy Imaging Surveys DR10.

The data flow one way: catalogues -> pixels -> detector -> injections -> audit -> selection function -> figures ->
paper. The notebooks hold the argument, this package the calculations. Start with ``lensaudit.config.load_config``
and ``lensaudit.artifacts.Stage``; every notebook begins with these two.
"""

__version__ = "0.1.0"
