"""kontti's version, for those that must not import the package's other names."""

VERSION = "0.1.0"
