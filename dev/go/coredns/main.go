// SPDX-License-Identifier: Apache-2.0

// Command coredns answers for the cluster's own zone and for nothing else. It has no forwarding plugin at
// all: a resolver that can forward is a way out.
package main

import (
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/coremain"
	_ "github.com/coredns/coredns/plugin/cache"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/health"
	_ "github.com/coredns/coredns/plugin/kubernetes"
	_ "github.com/coredns/coredns/plugin/log"
	_ "github.com/coredns/coredns/plugin/ready"
	_ "github.com/coredns/coredns/plugin/template"
)

func main() {
	// The order in which plugins see a query: what kubernetes does not answer, template refuses.
	dnsserver.Directives = []string{
		"errors", "log", "health", "ready", "cache", "kubernetes", "template",
	}
	coremain.Run()
}
