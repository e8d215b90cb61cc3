"""What people look at: one template environment, one stylesheet, one place for plots. Knows nothing about where the numbers come from."""
