"""`tunesmith plan`: predict memory and time, recommend a technique."""
