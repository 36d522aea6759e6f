"""The admission webhook and the placer: decides where pods go, in the request and from the queue."""
