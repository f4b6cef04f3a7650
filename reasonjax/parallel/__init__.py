"""The mesh, which axis of an array is split over which axis of the mesh, and several processes."""
