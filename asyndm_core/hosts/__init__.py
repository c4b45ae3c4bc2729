"""What differs between frameworks: each host is a small adapter of ``run.Host``."""
