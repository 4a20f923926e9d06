"""What is compared: each method a composition of the stages before."""
