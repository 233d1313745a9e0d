// A program for tests inside pods, where an image with a shell would take minutes to build.
module sovereign.dev/dev/witness

go 1.25.0
