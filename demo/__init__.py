"""`make demo`: everything a user would do, on real images, against the real service."""
