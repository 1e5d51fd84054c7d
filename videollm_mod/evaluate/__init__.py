"""How good a model is: metrics, and the two ways to get what they measure, on true text and on the model's own."""
