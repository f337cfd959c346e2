"""Drawing for terminals and notebooks: functions of arrays, labels and titles."""
