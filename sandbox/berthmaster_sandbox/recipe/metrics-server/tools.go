// Names the command to build, so that go.mod keeps what it needs.

//go:build tools

package tools

import _ "sigs.k8s.io/metrics-server/cmd/metrics-server"
