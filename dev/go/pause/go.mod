// The process that holds a pod's namespaces open.
module sovereign.dev/dev/pause

go 1.25.0
