"""Single neurons of the MLPs."""
