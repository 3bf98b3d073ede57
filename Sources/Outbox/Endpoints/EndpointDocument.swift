import FoundationEssentials
import Postgres
import Templates
import Transport

/// The one written form of an endpoint's configuration, in JSON: as `endpoint get -o json` shows
/// it, and as it is exported and imported. A member that is left out has its default; an unknown
/// member is refused, and so is null where a value is required.
extension EndpointConfiguration: Codable {
    /// How much of the possibly secret content is written. The rest is `***`, which on reading
    /// means the stored value.
    package enum Disclosure: Sendable {
        /// All but secrets, as in the database.
        case stored
        /// Neither secrets nor possible secrets: values of the URL's query, and of headers whose
        /// names suggest one.
        case masked
        /// All that is known.
        case revealed

        static var key: CodingUserInfoKey {
            guard let key = CodingUserInfoKey(rawValue: "disclosure") else { preconditionFailure("a key of ours") }
            return key
        }
    }

    /// Reads the written form; a `Problem` names the member that is wrong.
    package init(json: some Sequence<UInt8>) throws {
        do { self = try JSONDecoder().decode(Self.self, from: Data(json)) } catch let error as DecodingError {
            throw error.problem
        }
    }

    /// Reads one or a list of them.
    package static func list(json: some Sequence<UInt8>) throws -> [EndpointConfiguration] {
        let json = Array(json)
        guard json.first(where: { !" \t\r\n".utf8.contains($0) }) == UInt8(ascii: "[") else {
            return [try EndpointConfiguration(json: json)]
        }
        do { return try JSONDecoder().decode([EndpointConfiguration].self, from: Data(json)) } catch let error
            as DecodingError
        { throw error.problem }
    }

    /// The written form.
    package func json(_ disclosure: Disclosure = .masked) throws -> [UInt8] { try encoded(self, disclosure) }

    /// True when storing this over the other, as it is stored, would change nothing: a secret that
    /// is given may be another one.
    package func isEqual(to stored: EndpointConfiguration) throws -> Bool {
        var wanted = self
        if url == Masking.url(stored.url) { wanted.url = stored.url }
        if let old = stored.authentication.tokenURL, authentication.tokenURL == Masking.url(old) {
            wanted.authentication.tokenURL = old
        }
        for place in headers.indices where headers[place].value == .kept && stored.headers.indices.contains(place) {
            wanted.headers[place].value = stored.headers[place].value
        }
        return try wanted.json(.revealed) == stored.json(.revealed)
    }

    /// The path in the document of the first member with a text that contains U+0000. It checks the
    /// whole document, so that no member added later can be forgotten.
    func memberWithNUL() throws -> String? {
        func find(in json: JSON, _ path: String) -> String? {
            switch json.kind {
            case .string(let text): text.utf8.contains(0) ? path : nil
            case .array(let elements):
                elements.enumerated().lazy.compactMap { find(in: $1, "\(path)[\($0)]") }.first
            case .object(let members):
                members.lazy.compactMap { name, value in
                    find(in: value, path.isEmpty ? "\(name)" : "\(path).\(name)")
                }.first
            case .null, .number, .boolean: nil
            }
        }
        let text = try json(.revealed)
        do { return find(in: try JSON(text), "") } catch {
            throw Problem(.invalidValue, "the configuration cannot be written as JSON: \(error)")
        }
    }

    /// The document with a merge patch (RFC 7396) applied: null gives a member its default back.
    package func patched(_ patch: some Sequence<UInt8>) throws -> EndpointConfiguration {
        do {
            let document = try JSONDecoder().decode(JSONValue.self, from: Data(try json(.stored)))
            let patch = try JSONDecoder().decode(JSONValue.self, from: Data(patch))
            guard case .object = patch else { throw Problem(.invalidValue, "the patch is no JSON object") }
            return try EndpointConfiguration(json: try JSONEncoder().encode(document.merged(with: patch)))
        } catch let error as DecodingError {
            throw error.problem
        }
    }

    private enum CodingKeys: String, CodingKey, CaseIterable {
        case name, description, url, method, filter, format, template, headers, authentication, tls, http2, rates,
            ordered
        case customerID = "customer_id"
        case urlParameters = "url_parameters"
        case eventTypes = "event_types"
        case changeTypes = "change_types"
        case templateKind = "template_kind"
        case responseRules = "response_rules"
        case timeout = "timeout_seconds"
        case connectTimeout = "connect_timeout_seconds"
        case retrySchedule = "retry_schedule_seconds"
        case maxBodyBytes = "max_body_bytes"
        case maxInFlight = "max_in_flight"
        case maxConcurrency = "max_concurrency"
        case onDead = "on_dead"
    }

    package init(from decoder: any Decoder) throws {
        let members = try decoder.members(CodingKeys.self)
        self.init(
            name: try members.decode(String.self, forKey: .name), url: try members.decode(String.self, forKey: .url))
        customerID = try members.value(.customerID, or: customerID)
        description = try members.value(.description, or: nil)
        eventTypes = try members.value(.eventTypes, or: eventTypes)
        changeTypes = try members.value(.changeTypes, or: changeTypes)
        filter = try members.value(.filter, or: nil)
        urlHasParameters = try members.value(.urlParameters, or: urlHasParameters)
        method = HTTPRequest.Method(rawValue: try members.word(.method, HTTPRequest.Method.self) ?? "") ?? method
        format = Endpoint.Format(rawValue: try members.word(.format, Endpoint.Format.self) ?? "") ?? format
        let kind = try templateKind(try members.value(.templateKind, or: "json"))
        if let source: String = try members.value(.template, or: nil) {
            do { template = try Template(source, kind: kind) } catch {
                throw Problem(.templateInvalid, "the template cannot be used: \(error)")
            }
        }
        headers = try members.value(.headers, or: headers)
        authentication = try members.value(.authentication, or: authentication)
        tls = try members.value(.tls, or: tls)
        allowsHTTP2 = try members.value(.http2, or: allowsHTTP2)
        maxBodyBytes = try members.wholeNumber(.maxBodyBytes, mayBeNull: true)
        rules = try members.value(.responseRules, or: rules)
        timeout = Duration(seconds: try members.value(.timeout, or: timeout.inSeconds))
        connectTimeout = Duration(seconds: try members.value(.connectTimeout, or: connectTimeout.inSeconds))
        retrySchedule = try members.value(.retrySchedule, or: retrySchedule.map(\.inSeconds)).map {
            Duration(seconds: $0)
        }
        maxInFlight = try members.wholeNumber(.maxInFlight) ?? maxInFlight
        maxConcurrency = try members.wholeNumber(.maxConcurrency, mayBeNull: true)
        rates = try members.value(.rates, or: rates.map(\.description)).map { try RateLimit($0) }
        isOrdered = try members.value(.ordered, or: isOrdered)
        onDead = OnDead(rawValue: try members.word(.onDead, OnDead.self) ?? "") ?? onDead
    }

    package func encode(to encoder: any Encoder) throws {
        var members = encoder.container(keyedBy: CodingKeys.self)
        try members.encode(name, forKey: .name)
        try members.encode(customerID, forKey: .customerID)
        try members.encode(description, forKey: .description)
        try members.encode(encoder.disclosure == .masked ? Masking.url(url) : url, forKey: .url)
        try members.encode(urlHasParameters, forKey: .urlParameters)
        try members.encode(method.rawValue, forKey: .method)
        try members.encode(eventTypes, forKey: .eventTypes)
        try members.encode(changeTypes, forKey: .changeTypes)
        try members.encode(filter, forKey: .filter)
        try members.encode(format.rawValue, forKey: .format)
        try members.encode(template?.source, forKey: .template)
        try members.encode(template?.kind.stored ?? "json", forKey: .templateKind)
        try members.encode(headers, forKey: .headers)
        try members.encode(authentication, forKey: .authentication)
        try members.encode(rules, forKey: .responseRules)
        try members.encode(tls, forKey: .tls)
        try members.encode(allowsHTTP2, forKey: .http2)
        try members.encode(timeout.inSeconds, forKey: .timeout)
        try members.encode(connectTimeout.inSeconds, forKey: .connectTimeout)
        try members.encode(retrySchedule.map(\.inSeconds), forKey: .retrySchedule)
        try members.encode(maxBodyBytes, forKey: .maxBodyBytes)
        try members.encode(maxInFlight, forKey: .maxInFlight)
        try members.encode(maxConcurrency, forKey: .maxConcurrency)
        try members.encode(rates.map(\.description), forKey: .rates)
        try members.encode(isOrdered, forKey: .ordered)
        try members.encode(onDead.rawValue, forKey: .onDead)
    }
}

// MARK: Parts

extension EndpointSecret: Codable {
    package init(from decoder: any Decoder) throws {
        let text = try decoder.singleValueContainer().decode(String.self)
        self = text == Masking.mask ? .kept : .text(text)
    }

    package func encode(to encoder: any Encoder) throws {
        var container = encoder.singleValueContainer()
        if case .text(let text) = self, encoder.disclosure == .revealed {
            try container.encode(text)
        } else {
            try container.encode(Masking.mask)
        }
    }
}

extension EndpointConfiguration.Header: Codable {
    private enum CodingKeys: String, CodingKey, CaseIterable { case name, value, secret }

    package init(from decoder: any Decoder) throws {
        let members = try decoder.members(CodingKeys.self)
        name = try members.decode(String.self, forKey: .name)
        value = try members.value(.value, or: .kept)
        isSecret = try members.value(.secret, or: false)
    }

    package func encode(to encoder: any Encoder) throws {
        var members = encoder.container(keyedBy: CodingKeys.self)
        try members.encode(name, forKey: .name)
        let isShown = !isSecret && !(encoder.disclosure == .masked && Masking.soundsSecret(name))
        if isShown { try members.encode(value.text, forKey: .value) } else { try members.encode(value, forKey: .value) }
        try members.encode(isSecret, forKey: .secret)
    }
}

extension EndpointConfiguration.TLS: Codable {
    private enum CodingKeys: String, CodingKey, CaseIterable {
        case caCertificates = "ca_certificates"
        case clientCertificate = "client_certificate"
        case clientKey = "client_key"
    }

    package init(from decoder: any Decoder) throws {
        let members = try decoder.members(CodingKeys.self)
        caCertificates = try members.value(.caCertificates, or: nil)
        clientCertificate = try members.value(.clientCertificate, or: nil)
        clientKey = try members.value(.clientKey, or: nil)
    }

    package func encode(to encoder: any Encoder) throws {
        var members = encoder.container(keyedBy: CodingKeys.self)
        try members.encode(caCertificates, forKey: .caCertificates)
        try members.encode(clientCertificate, forKey: .clientCertificate)
        try members.encode(clientKey, forKey: .clientKey)
    }
}

extension Authentication: Codable {
    private enum CodingKeys: String, CodingKey, CaseIterable {
        case kind, user, header, scope, secret
        case tokenURL = "token_url"
        case clientID = "client_id"
        case clientProof = "client_auth"
    }

    package init(from decoder: any Decoder) throws {
        let members = try decoder.members(CodingKeys.self)
        kind = Kind(rawValue: try members.word(.kind, Kind.self) ?? "") ?? kind
        user = try members.value(.user, or: nil)
        header = try members.value(.header, or: nil)
        tokenURL = try members.value(.tokenURL, or: nil)
        clientID = try members.value(.clientID, or: nil)
        scope = try members.value(.scope, or: nil)
        clientProof = try members.value(.clientProof, or: nil)
        secret = try members.value(.secret, or: nil)
    }

    package func encode(to encoder: any Encoder) throws {
        var members = encoder.container(keyedBy: CodingKeys.self)
        try members.encode(kind, forKey: .kind)
        try members.encode(user, forKey: .user)
        try members.encode(header, forKey: .header)
        try members.encode(encoder.disclosure == .masked ? tokenURL.map(Masking.url) : tokenURL, forKey: .tokenURL)
        try members.encode(clientID, forKey: .clientID)
        try members.encode(scope, forKey: .scope)
        try members.encode(clientProof, forKey: .clientProof)
        try members.encode(secret, forKey: .secret)
    }
}

extension ResponseRules: Codable {
    private enum CodingKeys: String, CodingKey, CaseIterable {
        case success, permanent, body, rules
        case throttledTexts = "throttled_texts"
        case isFailureFinal = "rule_failure_final"
    }

    package init(from decoder: any Decoder) throws {
        let members = try decoder.members(CodingKeys.self)
        success = try members.value(.success, or: success)
        permanent = try members.value(.permanent, or: permanent)
        form = Form(rawValue: try members.word(.body, Form.self) ?? "") ?? form
        checks = try members.value(.rules, or: checks)
        throttled = try members.value(.throttledTexts, or: throttled)
        isFailureFinal = try members.value(.isFailureFinal, or: isFailureFinal)
    }

    package func encode(to encoder: any Encoder) throws {
        var members = encoder.container(keyedBy: CodingKeys.self)
        try members.encode(success, forKey: .success)
        try members.encode(permanent, forKey: .permanent)
        try members.encode(form, forKey: .body)
        try members.encode(checks, forKey: .rules)
        try members.encode(throttled, forKey: .throttledTexts)
        try members.encode(isFailureFinal, forKey: .isFailureFinal)
    }
}

private func templateKind(_ text: String) throws -> Template.Kind {
    do throws(UnknownValue) { return try Template.Kind(stored: text) } catch {
        throw Problem(
            .invalidValue, "template_kind cannot be \"\(text.prefix(64))\"", hint: "Expected one of json, xml, text")
    }
}
