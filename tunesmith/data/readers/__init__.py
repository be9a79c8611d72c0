"""Read files of rows: JSON lines, JSON, CSV, TSV, Parquet, Hub datasets, folders of documents."""
