"""How the rows of many songs lie: packed end to end, dense with a mask, or split over ranks."""
