"""What Kopf (and, for the one ConfigMap, an informer) shows, handed on to the fleet.

A module per kind. Each handler only decodes and passes on: no write, no finalizer, no annotation on
anybody's object, no return value (Kopf would store one in the object's status).
"""
