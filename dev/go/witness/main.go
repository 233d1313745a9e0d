// SPDX-License-Identifier: Apache-2.0

// Command witness tells tests what a pod can do. Every verb ends with 0 if it could and 1 if not.
//
//	witness serve ADDRESS     answer HTTP until the end
//	witness get URL           print a URL's body
//	witness resolve NAME      print a name's addresses
//	witness dial HOST:PORT    open a TCP connection
package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

const patience = 3 * time.Second

func main() {
	if len(os.Args) != 3 {
		fail("usage: witness serve|get|resolve|dial WHAT")
	}
	what := os.Args[2]
	switch os.Args[1] {
	case "serve":
		serve(what)
	case "get":
		client := http.Client{Timeout: patience}
		response, err := client.Get(what)
		check(err)
		body, err := io.ReadAll(response.Body)
		check(err)
		fmt.Println(string(body))
	case "resolve":
		limited, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		addresses, err := net.DefaultResolver.LookupHost(limited, what)
		check(err)
		fmt.Println(strings.Join(addresses, "\n"))
	case "dial":
		connection, err := net.DialTimeout("tcp", what, patience)
		check(err)
		fmt.Println(connection.RemoteAddr())
	default:
		fail("witness does not know " + os.Args[1])
	}
}

func serve(address string) {
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGTERM, syscall.SIGINT)
	go func() {
		<-ended
		os.Exit(0)
	}()
	host, err := os.Hostname()
	check(err)
	http.HandleFunc("/", func(answer http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(answer, "I am %s", host)
	})
	fmt.Println("serving on", address)
	check(http.ListenAndServe(address, nil))
}

func check(err error) {
	if err != nil {
		fail(err.Error())
	}
}

func fail(message string) {
	fmt.Fprintln(os.Stderr, message)
	os.Exit(1)
}
