"""Sites of a simulation trained together: one model, the weights of many sites stacked."""
