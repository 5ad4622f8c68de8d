"""One fine-tuning job, start to finish, on the devices it is given: a library that needs no service."""
