"""What people hold in their hands: `kubectl berth`, and the runner of decision cases."""
