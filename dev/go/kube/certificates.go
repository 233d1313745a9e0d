// SPDX-License-Identifier: Apache-2.0

package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// writeCertificates fills folder with what one embedded cluster trusts: its own certificate authority (ca),
// the API server's certificate for the given addresses and for its names inside the cluster (apiserver), the
// API server's identity towards kubelets (kubelet-client) and the key that signs service account tokens
// (service-account). Each name becomes a .crt and a .key file.
func writeCertificates(folder string, addresses []string) error {
	authority := &x509.Certificate{
		Subject:               pkix.Name{CommonName: "sovereign embedded cluster"},
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
	issuer, err := writeCertificate(folder, "ca", authority, authority, nil)
	if err != nil {
		return err
	}
	server := &x509.Certificate{
		Subject:     pkix.Name{CommonName: "kube-apiserver"},
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames: []string{
			"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc",
			"kubernetes.default.svc.cluster.local",
		},
	}
	for _, address := range addresses {
		parsed := net.ParseIP(address)
		if parsed == nil {
			return fmt.Errorf("%q is not an IP address", address)
		}
		server.IPAddresses = append(server.IPAddresses, parsed)
	}
	client := &x509.Certificate{
		Subject:     pkix.Name{CommonName: "kube-apiserver-kubelet-client", Organization: []string{"system:masters"}},
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	if _, err := writeCertificate(folder, "apiserver", server, authority, issuer); err != nil {
		return err
	}
	if _, err := writeCertificate(folder, "kubelet-client", client, authority, issuer); err != nil {
		return err
	}
	_, err = writeCertificate(folder, "service-account", &x509.Certificate{
		Subject: pkix.Name{CommonName: "service-account"},
	}, authority, issuer)
	return err
}

// writeCertificate makes a key, signs template with issuer (nil: with the new key itself) and writes both.
func writeCertificate(
	folder, name string, template, parent *x509.Certificate, issuer *ecdsa.PrivateKey,
) (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	if issuer == nil {
		issuer = key
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, err
	}
	template.SerialNumber = serial
	template.NotBefore = time.Now().Add(-time.Hour)
	template.NotAfter = time.Now().AddDate(10, 0, 0)
	signed, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, issuer)
	if err != nil {
		return nil, err
	}
	if template == parent {
		// Children name their issuer by its key identifier, which only the parsed certificate carries.
		parsed, err := x509.ParseCertificate(signed)
		if err != nil {
			return nil, err
		}
		*parent = *parsed
	}
	encoded, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, err
	}
	if err := writePEM(filepath.Join(folder, name+".key"), "EC PRIVATE KEY", encoded); err != nil {
		return nil, err
	}
	return key, writePEM(filepath.Join(folder, name+".crt"), "CERTIFICATE", signed)
}

func writePEM(path, kind string, content []byte) error {
	return os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: content}), 0o600)
}
