"""The report: one page of HTML that tells how the fleet is. Pure: figures in, text out."""
