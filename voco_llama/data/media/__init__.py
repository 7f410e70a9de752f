"""Images, clips, and where their bytes lie: folders, archives, tables."""
