"""The streaming half of SEDflow: alert messages in, posterior summaries out."""
