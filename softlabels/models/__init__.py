"""Networks: teachers, students, and the devices that they run on."""
