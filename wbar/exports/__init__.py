"""What a job did, in the files and stores of other tools: TensorBoard, MLflow, CSV, Parquet. Read through the API alone."""
