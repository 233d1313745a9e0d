{{- /* SPDX-License-Identifier: Apache-2.0
Names, labels and the few values that several templates share. Object names are fixed, not derived from the
release: there is one operator per cluster, and the operator's configuration, docs and policies use these names. */ -}}

{{- define "sovereign.labels" -}}
app.kubernetes.io/part-of: sovereign
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "sovereign.pushSecret" -}}
{{- .Values.registry.pushSecret | default "sovereign-registry-push" -}}
{{- end }}

{{- define "sovereign.serverSecret" -}}
{{- .Values.registry.serverSecret | default "sovereign-registry-server" -}}
{{- end }}

{{- define "sovereign.registryHost" -}}
{{- if .Values.registry.enabled -}}
sovereign-registry.{{ .Release.Namespace }}.svc.{{ .Values.clusterDomain }}:5000
{{- else -}}
{{- required "registry.host is needed when registry.enabled is false" .Values.registry.host -}}
{{- end -}}
{{- end }}

{{- define "sovereign.registryWriter" -}}
{{- if .Values.registry.enabled -}}
sovereign-registry-writer.{{ .Release.Namespace }}.svc.{{ .Values.clusterDomain }}:5001
{{- else -}}
{{- required "registry.writer is needed when registry.enabled is false" .Values.registry.writer -}}
{{- end -}}
{{- end }}

{{- /* true or empty: whether garbage collection can run at all. An emptyDir cannot be mounted by a second pod. */ -}}
{{- define "sovereign.collects" -}}
{{- with .Values.registry -}}
{{- if and .enabled .persistence.enabled .garbageCollection.enabled -}}true{{- end -}}
{{- end -}}
{{- end }}

{{- /* true or empty: whether the volume is verified, which needs one that a second pod can mount. */ -}}
{{- define "sovereign.verifies" -}}
{{- with .Values.registry -}}
{{- if and .enabled .persistence.enabled .verification.enabled -}}true{{- end -}}
{{- end -}}
{{- end }}

{{- define "sovereign.claim" -}}
{{- .Values.registry.persistence.existingClaim | default "sovereign-registry" -}}
{{- end }}

{{- /* The claim through which model pods see the node cache; it has this name in every namespace with models. */ -}}
{{- define "sovereign.cacheClaim" -}}
sovereign-cache
{{- end }}

{{- /* Namespaces whose models may use the node cache, as a JSON list. */ -}}
{{- define "sovereign.cacheNamespaces" -}}
{{- ternary .Values.nodeCache.namespaces .Values.watchNamespaces .Values.clusterMode | uniq | sortAlpha | toJson -}}
{{- end }}

{{- /* A quantity (1.5Ti, 500M, 1e12) as a number of bytes. */ -}}
{{- define "sovereign.bytes" -}}
{{- $units := dict "" 1 "k" 1e3 "M" 1e6 "G" 1e9 "T" 1e12 "P" 1e15 "E" 1e18
      "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776 "Pi" 1125899906842624 "Ei" 1152921504606846976 -}}
{{- $unit := regexFind "[A-Za-z]+$" . -}}
{{- $bytes := mulf (trimSuffix $unit . | float64) (get $units $unit) -}}
{{- if ge $bytes 9e18 }}{{ fail (printf "expected a size below 9E, found %s" .) }}{{ end -}}
{{- $bytes | int64 -}}
{{- end }}

{{- /* Restricted pod security; uid 1000 is what all our images run as. */ -}}
{{- define "sovereign.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: 1000
runAsGroup: 1000
fsGroup: 1000
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "sovereign.containerSecurityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- define "sovereign.pullSecrets" -}}
{{- with .Values.images.pullSecrets }}
imagePullSecrets:
{{- range . }}
  - name: {{ . }}
{{- end }}
{{- end }}
{{- end }}

{{- /* nodeSelector, tolerations and priority class of one of the two workloads. */ -}}
{{- define "sovereign.scheduling" -}}
{{- with .priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
