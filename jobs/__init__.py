"""What runs on a cluster: training, evaluation, prediction, the demo; recipes are beside it."""
