//go:build tools

// Package tools pins etcd for development and tests. The program is the module's root package.
package tools

import _ "go.etcd.io/etcd/server/v3"
