"""Images as rows of Parquet files."""
