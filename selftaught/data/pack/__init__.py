"""Images written into Parquet shards."""
