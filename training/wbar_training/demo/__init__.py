"""`wbar demo`: everything a user would do, on real images, against a real service of its own."""
