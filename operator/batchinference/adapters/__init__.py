"""The outside world behind `ports`: Kubernetes, OpenAI, Bedrock, S3, worker processes."""
