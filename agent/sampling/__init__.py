"""One kernel interface per file; raw readings only, None where absent."""
