"""What a party keeps so that others can check it: ledgers, witnesses, keys. No torch, no Flower."""
