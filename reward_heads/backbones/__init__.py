"""Networks, their weights and their preprocessing, that several heads share."""
