"""What a run writes into its folder, and archives of finished studies."""
