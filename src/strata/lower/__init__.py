"""Graph op or fused group to loop function."""
