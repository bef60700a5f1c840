"""What training did to the embeddings: spectra of tables and layers."""
