"""/v1/jobs: create, watch, steer, and download what came out."""
