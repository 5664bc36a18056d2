"""The small models of the testbed, one file a kind; scripts/train_testbed.py trains them."""
