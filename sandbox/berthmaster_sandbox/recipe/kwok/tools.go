// Names the commands to build, so that go.mod keeps what they need.

//go:build tools

package tools

import _ "sigs.k8s.io/kwok/cmd/kwok"
