"""From column values to row ids: arithmetic shared by the reader and by serving, without torchrec."""
